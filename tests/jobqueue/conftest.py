from commands import home, new_home

__all__ = ["home", "new_home"]
