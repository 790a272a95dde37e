"""python -m sensesearch_jax.config: every field of a config, its type, its meaning, and whether it
pins a workdir.
"""

from __future__ import annotations

from sensesearch_jax.config.fields import FIELDS


def main() -> None:
    """Prints the fields, part by part."""
    part = ''
    for name, field in FIELDS.items():
        if name.partition('.')[0] != part and '.' in name:
            part = name.partition('.')[0]
            print()
        changes = '' if field.pins else ' (may change when a run goes on)'
        print(f'{name:32} {field.type.__name__:6} {field.meaning}{changes}')


if __name__ == '__main__':
    main()
