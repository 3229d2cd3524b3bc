"""flatcar-bake: put system extensions into Flatcar Container Linux images."""

__version__ = "0.1.0"
