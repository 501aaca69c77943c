"""Do we believe it: pure appraisal of evidence against endorsements, reference values and policy."""
