from .projection import (
    anneal_progress as anneal_progress,
    check_budget as check_budget,
    project as project,
    projected_groups as projected_groups,
)
