from controlplane.statements.months import MonthMetered as MonthMetered
from controlplane.statements.months import MonthRow as MonthRow
