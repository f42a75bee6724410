#!/usr/bin/env python
from controlplane.__main__ import main

if __name__ == "__main__":
    main()
