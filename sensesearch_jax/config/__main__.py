"""python -m sensesearch_jax.config: the fields of a config, with type and meaning."""

from __future__ import annotations

from sensesearch_jax.config.fields import FIELDS

HEAD = """\
Fields of the configs, set as --config.FIELD=VALUE. A workdir keeps the values that it was begun
with; fields with a * may have others when its run goes on."""


def main() -> None:
    """Prints one line per field, part by part."""
    print(HEAD)
    part = None
    for name, field in FIELDS.items():
        if name.rpartition('.')[0] != part:
            part = name.rpartition('.')[0]
            print()
        print(f'{name + "*" * (not field.pins):26} {field.type.__name__:5} {field.meaning}')


if __name__ == '__main__':
    main()
