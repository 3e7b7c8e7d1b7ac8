"""`effv2 report`: training runs on one self-contained page of HTML."""

__all__ = ["page"]
