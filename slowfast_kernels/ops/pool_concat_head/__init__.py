from .api import pool_concat_head

__all__ = ["pool_concat_head"]
