"""What executes, checks, compares and renders; no notebook imports it."""
