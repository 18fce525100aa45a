"""`python -m keras_smat.data.check PATH`: is this data set sound?

Exit status 0 if all that is there is sound, 1 if something is wrong.
"""

import argparse
import sys

from keras_smat.data.checking import check_dataset


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m keras_smat.data.check",
        description="Reads and decodes every image of a data set: a folder "
        "of sets as Meta-Dataset has, one set, or an image folder.",
    )
    add = parser.add_argument
    add("path")
    add("--image-size", type=int, default=224, help="pixels, for the hash")
    add("--sample", type=int, help="images per class to read instead of all")
    add("--workers", type=int, default=0, help="threads that read")
    add("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    try:
        check = check_dataset(
            options.path,
            options.image_size,
            options.sample,
            options.workers,
            verbose=0 if options.quiet else 1,
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(check)
    return 0 if check.ok else 1


if __name__ == "__main__":
    sys.exit(main())
