"""bioclip-hc: predict, embed, list-taxa, list-models, evaluate, shards, doctor.

Everything heavy is imported inside the command that needs it, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from bioclip_hc import (
    __version__,
    doctor,
    embed_cli,
    evaluate_cli,
    few_shot_cli,
    lists_cli,
    predict_cli,
    shards_cli,
)
from bioclip_hc.data.captions import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code: 0 done, 1 done with some images left out, 2 a mistake to mend, 130 Ctrl-C."""
    options = parser().parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # of `bioclip-hc ... | head`, who has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing at exit fails once more
        return 0
    except (ValueError, OSError) as error:
        # it may quote a server or a file: what a terminal would obey is not shown it
        print("bioclip-hc:", "\n".join(map(printable, str(error).split("\n"))), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bioclip-hc: interrupted", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130)  # now, for processes at work would be waited for; they end with this one


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="bioclip-hc", description="Hierarchical CLIP models of the tree of life.")
    top.add_argument("--version", action="version", version=f"bioclip-hc {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    predict_cli.add_command(commands)
    embed_cli.add_command(commands)
    lists_cli.add_commands(commands)
    evaluate_cli.add_command(commands)
    few_shot_cli.add_command(commands)
    p = commands.add_parser("shards", help="build, split, index, verify or inspect shards")
    shards_cli.add_actions(p)
    doctor.add_command(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
