"""The command behind scripts/merge_lora.sh: see --help."""

import argparse
import logging
import signal
import sys

from livetalk.cli import Parser, place_of
from livetalk.models.layouts import Layout
from OmniAvatar.merge_lora import SIZES, plan, sources, write


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="scripts/merge_lora.sh",
        description="Merges OmniAvatar's adapter into its Wan2.1 base: one .safetensors, loaded like any other.",
        epilog="size=14b may be written for --size 14b, and so on. Missing files: bash scripts/download.sh",
        allow_abbrev=False,
    )
    parser.add_argument("--size", default="1.3b", metavar="|".join(SIZES), help="which teacher (default 1.3b)")
    parser.add_argument("--base", metavar="PATH", help="file or folder of the Wan2.1 transformer")
    parser.add_argument("--lora", metavar="FOLDER", help="folder of pytorch_model.pt and config.json")
    parser.add_argument("--out", metavar="FILE", help="by default pretrained_checkpoints/OmniAvatar_merged/NAME")
    parser.add_argument("--dry-run", action="store_true", help="checks everything and writes nothing")
    return parser.parse_args([f"--{word}" if "=" in word and word[0] != "-" else word for word in arguments])


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a half-written file is removed
    try:
        options = parse(sys.argv[1:])
        layout = Layout()
        base, lora = sources(options.size, layout, options.base, options.lora)
        out = options.out or layout.teacher(options.size)
        entries = plan(SIZES[options.size](), base, lora)
        if options.dry_run:
            size = sum(entry.nbytes for entry in entries) / 2**30
            print(f"{base} + {lora} -> {out}: {len(entries)} tensors, total {size:.2f} GiB")
        else:
            print(write(entries, out))
    except ValueError as error:
        print(f"merge_lora: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"merge_lora: {place_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("merge_lora: stopped, nothing was left behind", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
