"""`python -m baker` is `flatcar-bake`."""

from baker.cli import main

if __name__ == "__main__":
    main()
