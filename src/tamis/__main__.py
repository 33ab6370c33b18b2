"""``python -m tamis`` is the command line."""

from tamis.cli.main import run

if __name__ == "__main__":
    run()
