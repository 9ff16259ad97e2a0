from .kept import CircuitParts as CircuitParts
from .prove import Ground as Ground, with_proofs as with_proofs
from .resample import resampled_losses as resampled_losses
from .verdicts import Verdict as Verdict
