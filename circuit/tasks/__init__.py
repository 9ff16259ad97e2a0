"""The 20 tasks (METHOD section 5): what they are (`TASKS`) and how their prompts become tokens (`build_task`); tasks
of one's own from files; what gives their answers away (`audited`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
