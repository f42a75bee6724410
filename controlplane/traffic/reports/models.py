from controlplane.traffic.usage.month_rows import MonthMetered as MonthMetered
from controlplane.traffic.usage.month_rows import MonthRow as MonthRow
