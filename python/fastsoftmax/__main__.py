"""`python -m fastsoftmax` prints the configuration."""

from ._runtime import show_config

if __name__ == "__main__":
    show_config()
