"""The released protocol with the authors' files: tokens as the family's template renders them, tool
images included, as evaluated and as trained."""

from importlib import resources
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict
from released_files import write_release

from sensesearch_jax.agent.actions import ImageCrop, ImageSearch
from sensesearch_jax.agent.chat_template import CHAT_TEMPLATE, ChatTokenizer
from sensesearch_jax.agent.environment import Environment, indexed_images
from sensesearch_jax.agent.observations import ObservationLimits
from sensesearch_jax.agent.protocol import DEFAULT, TOOLS
from sensesearch_jax.agent.released import ORDER, protocol_of
from sensesearch_jax.agent.trajectory import ImageRef, Turn
from sensesearch_jax.pocket.pretraining.train_tokenizer import train_tokenizer

SYSTEM = '#Part\n\nLook closely.  \nWrite “ü” as it is.'
SCENE, CROP, THUMBNAIL = ImageRef('a', 448, 252), ImageRef('b', 56, 84), ImageRef('c', 84, 56)
CALL = '<thinking>Small.</thinking>\n<tool_call>\n{"name": "image_zoom_in_tool"}\n</tool_call>'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A tokenizer, a manifest and a tool configuration in the layout of the release, in words of our
    own."""
    path = tmp_path_factory.mktemp('released')
    train_tokenizer([SYSTEM, CALL, DEFAULT.system_prompt(TOOLS)] * 3, path, vocab_size=500)
    write_release(path, SYSTEM)
    return path


def agent(folder, **released):
    files = {
        'system_file': str(folder / 'manifest.json'),
        'tools_file': str(folder / 'tools.yaml'),
        'form': 'evaluated',
        'crops': 'named',
    }
    return ConfigDict({'protocol': 'released', 'released': files | released})


def template_of(source):
    if source == 'ours':
        return CHAT_TEMPLATE
    pytest.importorskip('trl', reason='trl, which keeps the template of the family, is not here')
    return (resources.files('trl') / 'chat_templates' / 'qwen3_vl.jinja').read_text()


@pytest.mark.parametrize('source', ['ours', 'family'])
@pytest.mark.parametrize('form', ['evaluated', 'trained'])
def test_a_dialogue_has_the_templates_tokens(folder, source, form):
    """Zoom, image search and answer; two images come from tools."""
    protocol = protocol_of(agent(folder, form=form))
    chat = ChatTokenizer(folder, lambda width, height: width * height // 28**2)
    chat.turn_newline = protocol.turn_newline
    found = SimpleNamespace(
        image_search=lambda *_, **__: [SimpleNamespace(title='A flag', thumbnail=THUMBNAIL)]
    )
    found.crop = lambda *_: CROP
    environment = Environment(found, protocol, TOOLS, ObservationLimits())
    turns, results = [], []
    for action in (ImageCrop((0.1, 0.2, 0.5, 0.6), 1), ImageSearch(1)):
        observation = environment.execute(action, indexed_images([SCENE], turns))
        turns.append(Turn([], [], CALL, action, observation, []))
        results.append(observation.parts)
    assert indexed_images([SCENE], turns) == [SCENE, CROP, THUMBNAIL]
    ids = chat.prompt(environment.system_prompt, [SCENE, 'Which flag?'])
    for parts in results:
        turn = chat.assistant(CALL)
        ids += turn + chat.observation(parts, turn[-1])

    def content(parts):
        return [
            {'type': 'text', 'text': p} if isinstance(p, str) else {'type': 'image'} for p in parts
        ]

    messages = [
        {'role': 'system', 'content': SYSTEM},
        {'role': 'user', 'content': content([SCENE, 'Which flag?'])},
    ]
    for parts in results:
        messages += [
            {'role': 'assistant', 'content': CALL},
            {'role': 'tool', 'content': content(parts)},
        ]
    tokenizer = pytest.importorskip('transformers').AutoTokenizer.from_pretrained(str(folder))
    text = tokenizer.apply_chat_template(
        messages,
        tools=[dict(protocol.schemas)[tool] for tool in ORDER],
        chat_template=template_of(source),
        tokenize=False,
        add_generation_prompt=True,
    )
    if form == 'trained':  # by increments, which lost it
        text = text.replace(f'{CALL}<|im_end|>\n', f'{CALL}<|im_end|>')
    for image in (SCENE, CROP, THUMBNAIL):
        pads = '<|image_pad|>' * chat.visual_tokens(image.width, image.height)
        text = text.replace('<|image_pad|>', pads.replace('image_pad', 'shown'), 1)
    text = text.replace('<|shown|>', '<|image_pad|>')
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert ('minItems' in text) == (form == 'evaluated')


def test_a_crop_of_the_original_is_clamped_and_takes_no_other_image(folder):
    asked = []
    client = SimpleNamespace(crop=lambda *call: asked.append(call) or CROP)
    for crops, image, box in (('original', 'a', (0.5, 0.0, 1.0, 0.9)), ('named', 'b', None)):
        protocol = protocol_of(agent(folder, crops=crops))
        environment = Environment(client, protocol, TOOLS, ObservationLimits())
        call = '{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [500, -20, 1400, 900], "label": "x", "img_idx": 1}}'  # noqa: E501
        action = environment.parse(f'<tool_call>\n{call}\n</tool_call>').action
        observation = environment.execute(action, [SCENE, CROP])
        assert observation.ok == (crops == 'original')
        if box:
            assert asked.pop() == (image, box)
            assert observation.parts == ('Here is the zoomed image:', CROP)


@pytest.mark.parametrize(
    'released, complaint',
    [
        ({'form': 'served'}, "released.form 'served' is unknown"),
        ({'system_file': 'absent'}, 'absent cannot be read'),
        ({'system_file': ''}, 'go together'),
        ({'tools_file': 'setup.cfg'}, 'neither YAML nor JSON|holds no tools'),
    ],
)
def test_what_is_missing_is_said(folder, released, complaint):
    with pytest.raises(ValueError, match=complaint):
        protocol_of(agent(folder, **released))
