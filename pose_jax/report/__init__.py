"""Results on disk and arrays -> drawings, figures, tables, one HTML page.

Nothing here runs a model. Import the modules by name.
"""
