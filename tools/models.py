"""`cavmae models`: models in the box and those of ours in the cache of the hub."""

from collections.abc import Sequence

from cavmae.common.cli import module_main, output, parse, parser
from cavmae.finetune.models.box import boxed_models


def main(words: Sequence[str]) -> int:
    """Prints the models by place. Nothing is fetched from the network.

    Raises:
        CavmaeError: a model in the box is damaged.
    """
    parse(parser("models", "Models in the box and in the cache of the hub."), words)
    from cavmae.tools.catalogue import boxed_row, cached_rows, table

    output("In the box:")
    for line in table([boxed_row(model) for model in boxed_models()]):
        output("%s", line)
    folder, rows = cached_rows()
    output("\nIn the cache of the hub, %s:", folder)
    for line in table(rows):
        output("%s", line)
    output("\nName one with --model; `cavmae export` writes a folder for either place.")
    return 0


if __name__ == "__main__":
    module_main(main)
