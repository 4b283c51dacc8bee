"""Two profiles of hypothesis: a short one that draws the same in every run, and HYPOTHESIS_PROFILE=long."""

import os

from hypothesis import HealthCheck, Phase, settings

EXAMPLES = 20  # of a property in the short profile
common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": False}
phases = [Phase.explicit, Phase.generate, Phase.shrink]  # without explaining, which is slow
settings.register_profile("short", derandomize=True, database=None, max_examples=EXAMPLES, phases=phases, **common)
settings.register_profile("long", max_examples=100 * EXAMPLES, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))
