"""A local, OpenAI-compatible server with a controller in the loop and a service level for every request.

Imports neither torch nor FastAPI; ``app`` and ``run`` need ``pip install 'clone-rl[serve]'``.
"""

from clone_rl.runtime.server.failures import ApiError
from clone_rl.runtime.server.settings import CLOCKS, Settings

__all__ = ["CLOCKS", "ApiError", "Settings"]
