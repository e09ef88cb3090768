"""Other frameworks' weights -> variables: names, layouts, parity."""
