"""`effv2 report`: training runs on one self-contained page of HTML, by `page.write_report`."""

__all__ = ["page"]
