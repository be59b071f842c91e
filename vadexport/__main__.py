"""`python -m vadexport`."""

from vadexport.cli.main import main

main()
