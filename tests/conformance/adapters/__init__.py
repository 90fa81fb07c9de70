"""Estimators of the table: ours through its own code, and peers' formulas rewritten from what they document and do."""

from tests.conformance.adapters.areal import Areal
from tests.conformance.adapters.nemo_rl import NemoRl
from tests.conformance.adapters.openrlhf import OpenRlhf
from tests.conformance.adapters.slime import Slime
from tests.conformance.adapters.trl import Trl
from tests.conformance.adapters.vcppo import Vcppo
from tests.conformance.adapters.verl import Verl

ESTIMATORS = (Vcppo(), Verl(), Trl(), OpenRlhf(), NemoRl(), Slime(), Areal())
