"""Serve a model as a web page: `python app.py [--model FOLDER_OR_REPO]`; a Hugging Face Space runs this file too."""

import sys

from aimonk_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
