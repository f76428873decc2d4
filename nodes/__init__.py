"""What a person sees: schemas, tooltips, validation. No tensor arithmetic."""
