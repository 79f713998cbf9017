from commands import home, new_home
from fake_queue import queue

__all__ = ["home", "new_home", "queue"]
