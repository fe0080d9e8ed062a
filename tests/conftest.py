"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A machine with other work makes its examples slowly; that is no fault of what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
