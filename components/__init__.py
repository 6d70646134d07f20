"""The parts that policies are made of. Importing this package imports no part and no torch."""

from ..schemas.errors import RegistryError

__all__ = ["RegistryError"]
