"""Entry point of `python -m dlm`, which is the command `dlm`."""

from dlm.cli import main

if __name__ == "__main__":
    main()
