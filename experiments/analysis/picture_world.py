"""Draws the README's picture of the pocket world: two test scenes, with the object asked for boxed.

python -m experiments.analysis.picture_world --out=docs/pocket_world.jpg
"""

from absl import app, flags
from PIL import Image, ImageDraw

from sensesearch_jax.pocket.world.files import PocketFiles
from sensesearch_jax.pocket.world.questions import make_questions
from sensesearch_jax.pocket.world.scenes import Renderer

OUT = flags.DEFINE_string('out', 'docs/pocket_world.jpg', 'Where the picture is written.')
SIZE = (800, 450)


def main(_: list[str]) -> None:
    """Takes the first test question of level 3 on a map and on a wall."""
    files = PocketFiles()
    renderer = Renderer(files)
    canvas = Image.new('RGB', (2 * SIZE[0] + 16, SIZE[1]), 'white')
    made = make_questions(files, 'test', 'search', 40, seed=1)
    for column, kind in enumerate(('map', 'wall')):
        question, scene = next((q, s) for q, s in made if s.kind == kind and q.difficulty == '3')
        picture = renderer.render(scene, size=SIZE)
        box = [v * side for v, side in zip(question.truth['box'], SIZE * 2)]
        ImageDraw.Draw(picture).rectangle(
            [box[0] - 6, box[1] - 6, box[2] + 6, box[3] + 6], outline='#c8102e', width=3
        )
        canvas.paste(picture, (column * (SIZE[0] + 16), 0))
        print(f'{kind}: {question.text} ({question.answers[0]})')
    canvas.save(OUT.value, quality=88)


if __name__ == '__main__':
    app.run(main)
