"""Files in the layout of the SenseNova-MARS release, in words of our own."""

import json

import yaml

from sensesearch_jax.agent.protocol import RELEASED, TOOLS


def write_release(path, system):
    """manifest.json of a data set with the system text, and tools.yaml."""
    entry = {'input_template': {'arguments': {'system_prompt': system}}}
    (path / 'manifest.json').write_text(json.dumps({'one': entry, 'other': entry}))
    declared = []
    for tool in TOOLS:
        schema = RELEASED.schema(tool)
        for value in schema['function']['parameters']['properties'].values():
            if value['type'] == 'array':
                value |= {'minItems': 4, 'maxItems': 4}
        declared.append({'class_name': 'x', 'config': {}, 'tool_schema': schema})
    (path / 'tools.yaml').write_text(yaml.safe_dump({'tools': declared}, sort_keys=False))
