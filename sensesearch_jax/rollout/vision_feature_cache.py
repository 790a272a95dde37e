"""Visual features by content hash: every image goes through the frozen tower once, whoever shows it
how often.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from concurrent.futures import Future

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from sensesearch_jax.agent.tool_client import ToolClient, ToolFailure
from sensesearch_jax.agent.trajectory import ImageRef
from sensesearch_jax.batching.group_batch import ImageTable
from sensesearch_jax.batching.length_bucketing import bucket
from sensesearch_jax.errors import UserError
from sensesearch_jax.model.image_processor import MAX_ASPECT_RATIO, Preprocessor
from sensesearch_jax.model.policy import Policy
from sensesearch_jax.model.vision_windows import batch_images, window_slots
from sensesearch_jax.rollout.towers import Tower, Towers
from tools_server.failures import ToolError
from tools_server.pictures.decoder import read_gentle

Grid = tuple[int, int, int]
Patches = tuple[Float[np.ndarray, 'i c'], Grid]
Features = tuple[Float[np.ndarray, 'm d'], Grid]


class FeatureStore:
    """Visual features of images: patches are made on tool threads (`prepare`), features are computed
    in batches on the device (`table`).

    Args:
        policy: its tower is used and must stay frozen while the store lives.
        preprocessor: of the policy's directory.
        client: fetches an image by its hash.
        capacity_bytes: features kept; the least recently wanted go first and are computed again
            when needed. Where all that a step wants fits, none of it goes before the next step.
        batch: most images in one pass through the tower.
    """

    def __init__(
        self,
        policy: Policy,
        preprocessor: Preprocessor,
        client: ToolClient,
        *,
        capacity_bytes: int,
        batch: int,
    ):
        self.sizes, self.batch = policy.sizes.vision, batch
        self.preprocessor, self.client = preprocessor, client
        self._towers = Towers(policy)
        self._features: OrderedDict[str, Features] = OrderedDict()
        self._patches: dict[str, Patches] = {}
        self._preparing: dict[str, Future] = {}
        self._encoding: dict[str, threading.Event] = {}  # in some tower now; set when it is out
        self._lock = threading.Lock()
        self._bytes, self._capacity = 0, capacity_bytes
        self._seen: set[str] = set()
        self.images_encoded = 0
        # images that went within the step that wanted them, and were encoded again in it
        self.encoded_again = 0
        # images that the step has wanted, and the bytes of their features
        self._of_step: dict[str, int] = {}
        self._encoded_in_step: set[str] = set()
        self._warned = False

    @property
    def distinct_images(self) -> int:
        """Different images asked for so far; `images_encoded` / this is the vision amplification."""
        return len(self._seen)

    @property
    def step_bytes(self) -> int:
        """Features that the step has wanted so far: so much capacity keeps all of them."""
        return sum(self._of_step.values())

    def begin_step(self) -> None:
        """From here on other images may be wanted than before; the counts of the step begin anew."""
        with self._lock:
            self._of_step, self._encoded_in_step, self.encoded_again = {}, set(), 0

    @property
    def compiles(self) -> int:
        """Programs compiled for the tower so far."""
        return self._towers.compiles

    def place(self, meshes: Iterable[Mesh]) -> None:
        """Puts a tower on the devices of each replica of the sampler; see `Towers.place`."""
        self._towers.place(meshes)

    def warm_up(self, mesh: Mesh | None = None) -> None:
        """Compiles the tower for pictures of every size and form that the preprocessor gives.

        Args:
            mesh: of a replica; None for all devices of this process.
        """
        tower = self._towers.on(mesh)
        merge, window = self.sizes.merge_size, self.sizes.window_tokens
        most = self.preprocessor.most_tokens
        # of a picture one token high, which may have more than that
        longest = math.isqrt(MAX_ASPECT_RATIO * most)
        largest = max(
            window_slots(1, longest, window),
            *(window_slots(r, most // r, window) for r in range(1, most + 1)),
        )
        smallest = np.zeros((merge**2, self.sizes.patch_width), np.float32), (1, merge, merge)
        for slots in sorted({bucket(places, window**2) for places in range(1, largest + 1)}):
            for count in {1, self.batch}:
                tower(batch_images([smallest], self.sizes, slots=slots, count=count))

    def unusable(self, image: ImageRef) -> str | None:
        """Reason why no policy can see a picture of this form; None if one can. Nothing is fetched."""
        try:
            self.preprocessor.grid(image.width, image.height)
        except ValueError as error:
            return f'The picture cannot be used: {error}.'
        return None

    def prepare(self, image: ImageRef) -> ToolFailure | None:
        """Fetches an image and makes its patches, unless its features are known; safe to call from
        threads.

        Those who want an image that another thread is at wait for it: questions about one picture
        come together.
        """
        with self._lock:
            if image.sha256 in self._features:
                self._features.move_to_end(image.sha256)  # it is about to be wanted
                return None
            if image.sha256 in self._patches:
                return None
            under_way = self._preparing.get(image.sha256)
            if under_way is None:
                done = self._preparing[image.sha256] = Future()
        if under_way is not None:
            return under_way.result()
        try:
            failure = self._make_patches(image)
        except BaseException as error:  # whoever waits learns of it too
            done.set_exception(error)
            raise
        else:
            done.set_result(failure)
            return failure
        finally:
            with self._lock:
                del self._preparing[image.sha256]

    def forget(self, images: Iterable[ImageRef]) -> None:
        """Frees the patches of images that are not wanted after all; they can be made again."""
        with self._lock:
            for image in images:
                self._patches.pop(image.sha256, None)

    def _make_patches(self, image: ImageRef) -> ToolFailure | None:
        data = self.client.image(image.sha256)
        if isinstance(data, ToolFailure):
            return data
        try:
            patches = self.preprocessor.patches(read_gentle(data))
        except (ToolError, ValueError) as error:  # damaged, or of a shape that no policy can see
            return ToolFailure('unavailable', f'the picture cannot be used: {error}')
        with self._lock:
            self._patches.setdefault(image.sha256, patches)
        return None

    def table(
        self, images: Iterable[ImageRef], ahead: Iterable[ImageRef] = (), mesh: Mesh | None = None
    ) -> ImageTable:
        """Grids and features of the images, computing what is missing; safe to call from threads,
        one at a time on the same devices.

        Args:
            images: whose features are returned.
            ahead: images that are asked for next, the soonest first: they fill the places that a
                pass through the tower has left.
            mesh: of the replica that computes; None for all devices of this process.

        Raises:
            ValueError: an image is gone and cannot be fetched again.
        """
        refs = {image.sha256: image for image in images}
        later = {image.sha256: image for image in ahead if image.sha256 not in refs}
        tower = self._towers.on(mesh)
        with tower.turn:
            found = self._found(refs, later, tower)
        with self._lock:
            self._seen.update(refs)
            for name, (features, _) in found.items():
                if name in self._features:
                    self._features.move_to_end(name)
                self._of_step[name] = features.nbytes
            self._make_room(refs)
            self._warn()
        return ImageTable(
            {name: grid for name, (_, grid) in found.items()},
            {name: features for name, (features, _) in found.items()},
        )

    def _found(
        self, refs: dict[str, ImageRef], ahead: dict[str, ImageRef], tower: Tower
    ) -> dict[str, Features]:
        """Features of the images. What another tower is at is waited for, once this one is done."""
        found: dict[str, Features] = {}
        while left := {name: image for name, image in refs.items() if name not in found}:
            done = threading.Event()
            with self._lock:
                others = [self._encoding[name] for name in left if name in self._encoding]
                passes = self._passes(self._unknown(left), self._unknown(ahead))
                ours = [image for images_of_pass in passes for image in images_of_pass]
                self._encoding |= {image.sha256: done for image in ours}
            try:
                for image in ours:
                    if (failure := self.prepare(image)) and image.sha256 in refs:
                        raise UserError(
                            f'Image {image.sha256[:12]} cannot be fetched: {failure.message}'
                        )
                for images_of_pass in passes:
                    self._compute(images_of_pass, tower)
            finally:
                with self._lock:
                    found |= {n: self._features[n] for n in left if n in self._features}
                    for image in ours:
                        del self._encoding[image.sha256]
                done.set()
            for other in others:
                other.wait()
        return found

    def _unknown(self, images: dict[str, ImageRef]) -> list[ImageRef]:
        """Those images whose features are not there, nor in some tower now."""
        known = self._features, self._encoding
        return [image for name, image in images.items() if not any(name in k for k in known)]

    def _make_room(self, kept: Container[str]) -> None:
        """Forgets the features that nobody has wanted for longest, but for those kept."""
        for name in list(self._features) if self._bytes > self._capacity else ():
            if self._bytes > self._capacity and name not in kept and name not in self._encoding:
                self._bytes -= self._features.pop(name)[0].nbytes

    def _warn(self) -> None:
        """Says once that the store is too small."""
        if self.encoded_again and not self._warned:
            self._warned = True

            def gib(count):
                return f'{count / (1 << 30):.3g}'

            print(
                f'sensesearch_jax: rollout.feature_cache_gib {gib(self._capacity)} is too little for the pictures of one '  # noqa: E501
                f'step, {gib(self.step_bytes)} GiB of features so far: some go through the vision tower again. Set it to '  # noqa: E501
                'more.',
                file=sys.stderr,
            )

    def clear(self) -> None:
        """Forgets all features, as after a change of the tower; they are computed when asked."""
        with self._lock:
            self._features.clear()
            self._bytes = 0
            # what went did not go for lack of room
            self._of_step, self._encoded_in_step = {}, set()

    def _passes(
        self, missing: Sequence[ImageRef], later: Sequence[ImageRef]
    ) -> list[list[ImageRef]]:
        """The missing images in passes through the tower, of like size together, and later ones."""
        passes: list[list[ImageRef]] = []
        waiting: dict[int, list[ImageRef]] = {}
        for image in later:
            waiting.setdefault(self._slots(image), []).append(image)
        for slots, group in itertools.groupby(sorted(missing, key=self._slots), self._slots):
            group = list(group)
            room = -len(group) % self.batch if len(group) > 1 else 0
            group += waiting.get(slots, [])[:room]
            passes += [group[i : i + self.batch] for i in range(0, len(group), self.batch)]
        return passes

    def _slots(self, image: ImageRef) -> int:
        """The tower's places that an image is padded to: few sizes."""
        return self._padded(self.preprocessor.grid(image.width, image.height))

    def _padded(self, grid: tuple[int, int, int]) -> int:
        merge, window = self.sizes.merge_size, self.sizes.window_tokens
        return bucket(window_slots(grid[1] // merge, grid[2] // merge, window), window**2)

    def _compute(self, images: Sequence[ImageRef], tower: Tower) -> None:
        """Runs a tower on prepared images of like size."""
        names = [image.sha256 for image in images if image.sha256 in self._patches]
        patches = [self._patches[name] for name in names]
        # A picture that says it is turned has other sides than its reference.
        slots = max(self._padded(grid) for _, grid in patches)
        batch = batch_images(
            patches, self.sizes, slots=slots, count=1 if len(names) == 1 else self.batch
        )
        out = np.asarray(tower(batch))
        with self._lock:
            for name, values, count in zip(names, out, batch.counts):
                features = values[:count].copy()
                self._features[name] = features, self._patches.pop(name)[1]
                self._bytes += features.nbytes
                self.encoded_again += name in self._of_step or name in self._encoded_in_step
                self._encoded_in_step.add(name)
            self.images_encoded += len(names)
