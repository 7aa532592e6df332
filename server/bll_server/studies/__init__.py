"""Studies: many jobs from one request, which differ in some fields of their specs."""
