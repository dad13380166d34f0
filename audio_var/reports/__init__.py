"""Reports on trained models: what they measure, as data, tables, figures and clips."""
