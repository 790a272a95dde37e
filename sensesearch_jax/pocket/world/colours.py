"""Names the colour that clearly dominates a flag."""

import cv2
import numpy as np

NAMES = ('red', 'blue', 'green', 'white', 'yellow', 'black', 'orange')
# Hue in degrees; the gaps between the ranges belong to no colour, so that a borderline shade is
# never asked for.
HUES = {
    'red': ((0, 12), (342, 360)),
    'orange': ((22, 36),),
    'yellow': ((44, 66),),
    'green': ((84, 168),),
    'blue': ((192, 262),),
}


def colour_shares(picture: np.ndarray) -> dict[str, float]:
    """Colour name -> share of the pixels of an 8-bit RGB picture [height, width, 3]."""
    hue, saturation, value = cv2.split(
        cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    )
    vivid = (saturation > 0.45) & (value > 0.35)
    masks = {'white': (saturation < 0.12) & (value > 0.85), 'black': value < 0.22}
    for name, ranges in HUES.items():
        masks[name] = vivid & np.any([(hue >= low) & (hue <= high) for low, high in ranges], axis=0)
    # Dark blues and greens count although their value is low.
    dark = (saturation > 0.6) & (value >= 0.25) & ~vivid
    masks['blue'] |= dark & (hue >= 200) & (hue <= 260)
    masks['green'] |= dark & (hue >= 90) & (hue <= 165)
    return {name: float(masks[name].mean()) for name in NAMES}


def dominant_colour(picture: np.ndarray, least: float = 0.5, lead: float = 1.4) -> str | None:
    """The colour that covers `least` of the picture and `lead` times as much as any other, or None.

    Args:
        picture: [height, width, 3].
        least: share of the picture.
        lead: times the share of the next colour.
    """
    shares = colour_shares(picture)
    first, second = sorted(shares, key=shares.__getitem__, reverse=True)[:2]
    return first if shares[first] >= least and shares[first] >= lead * shares[second] else None
