"""`python -m retrieval` is `retrieve`."""

from retrieval.cli import main

if __name__ == "__main__":
    main()
