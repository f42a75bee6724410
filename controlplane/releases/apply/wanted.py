"""The change that policy files want, found by comparing them with the present state."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from controlplane.changes.words.change import Change, ObjectChange
from controlplane.changes.words.fields import Record
from controlplane.core.ids import new_id
from controlplane.core.partitions import text_of
from controlplane.core.text import slug_error
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import isoformat
from controlplane.releases.apply.present import PresentState, Visible
from controlplane.releases.publishing.writing import REFERENCES
from enforcement.model.limits import Limit
from enforcement.policy_files.fields import OVERRIDE, POLICY, PROJECT, with_defaults
from enforcement.policy_files.policy_file import PolicyFile
from enforcement.policy_files.source import InvalidFile, InvalidFiles, Path

# A file says nothing of these fields of an object.
UNSAID: Record = {"version": 1}


Placed = tuple[ObjectChange, Path]


@dataclass(frozen=True, slots=True)
class ApplyOptions:
    """
    What somebody wants beside the files.

    Attributes:
        managed_by: Where the files are, which marks their objects. Empty: nothing is marked.
        renames_mark: Whether an object gets the mark that has another one.
        prune: Whether policies are deleted that are managed from files and in none of these.
        prune_overrides: Whether overrides are deleted that are not in the files, of projects, and of their tokens if
            the file has such.
    """

    managed_by: str = ""
    renames_mark: bool = False
    prune: bool = False
    prune_overrides: bool = False


@dataclass(frozen=True, slots=True)
class WantedPlan:
    """
    What some files want.

    Attributes:
        change: What becomes of the objects, without those that stay as they are.
        places: The file of each of them, and its place there, which is empty for what is in no file.
        state: Names the present state that the plan was made for.
    """

    change: Change
    places: Sequence[tuple[PolicyFile, Path]]
    state: str


def wanted_by(files: Sequence[PolicyFile], options: ApplyOptions, visible: Visible, now: datetime) -> WantedPlan:
    """
    Return what some files want, and lock what they are about. An open change may then write it.

    Args:
        visible: The rows that whoever applies the files may see.
        now: What has ended by then counts as not there.
    Raises:
        InvalidFiles: A file names what is not there, or the slug of a policy that is elsewhere.
    """
    present = PresentState(files, visible, now)
    found: list[tuple[ObjectChange, PolicyFile, Path]] = []
    stays: list[str] = []
    errors: list[InvalidFile] = []
    known: dict[str, Record] = {}
    all_wanted = [_Wanted(file, options, visible, present, now, known) for file in files]
    for one in all_wanted:
        one.read_policies()
    for file, one in zip(files, all_wanted, strict=True):
        found += [(changed, file, path) for changed, path in one.objects()]
        stays += one.stays
        errors += one.errors
    errors += _taken(found)
    if errors:
        raise InvalidFiles(errors)
    objects = tuple(changed for changed, _, _ in found)
    return WantedPlan(Change(objects, tuple(stays)), [(file, path) for _, file, path in found], present.digest)


def _taken(found: Iterable[tuple[ObjectChange, PolicyFile, Path]]) -> Iterator[InvalidFile]:
    """Yield an error for each new policy whose slug is that of another one, which may be one that nobody may see."""
    new = {one.label: (file, path) for one, file, path in found if one.kind == "policy" and one.before is None}
    for slug in Policy.objects.filter(slug__in=new).values_list("slug", flat=True) if new else ():
        file, path = new[slug]
        yield file.error((*path, "slug"), "Must be another slug, because this one is of a policy that is elsewhere.")


@dataclass(slots=True)
class _Wanted:
    """What one file wants, with what stays and with what is wrong in it."""

    file: PolicyFile
    options: ApplyOptions
    visible: Visible
    present: PresentState
    now: datetime
    # Records of the policies of all files, by slug. A project may use a policy of another file.
    known: dict[str, Record]
    stays: list[str] = field(default_factory=list)
    errors: list[InvalidFile] = field(default_factory=list)
    # Records of the policies of the file, by slug.
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    owner: str | None = None
    former: dict[str, Policy] = field(default_factory=dict)

    def read_policies(self) -> None:
        """Find the records of the policies of the file, before a file names one of them."""
        project = self._present_project()
        self.owner = project["id"] if project else new_id("proj") if self.file.project else None
        self.former = {slug: row for slug, row in self.present.policies.items() if row.project_id == self.owner}
        for index, slug in enumerate(self.file.policies):
            self.policies[slug] = self._policy(slug, self.former.get(slug), ("policies", index))
        self.known |= self.policies

    def _present_project(self) -> Record | None:
        row = self.present.projects.get(self.file.project["slug"]) if self.file.project else None
        return row.as_record() if row else None

    def objects(self) -> Iterator[Placed]:
        """Yield what becomes of each object, with its place in the file."""
        before, former = self._present_project(), self.former
        unsaid = {slug: one.as_record() for slug, one in former.items() if slug not in self.policies}
        self._choose({**unsaid, **self.policies})
        if self.file.project:
            yield from self._changed("project", before, self._project(self.file.project, before), ("project",))
        for index, (slug, record) in enumerate(self.policies.items()):
            row = former.get(slug)
            yield from self._changed("policy", row.as_record() if row else None, record, ("policies", index))
        yield from self._overrides()
        for slug, record in unsaid.items():
            if not self._is_pruned(slug, former[slug].managed_by):
                yield from self._changed("policy", former[slug].as_record(), record, ("global",))
            else:
                yield ObjectChange("policy", record["id"], slug, former[slug].as_record(), None, self.owner), ()

    def _changed(self, kind: str, before: Record | None, after: Record, path: Path) -> Iterator[Placed]:
        """Yield the change of a project or policy if there is one, with its place."""
        if before == after:
            return
        # Members change neither which policy is global nor how much of the store a project may take.
        was = before or {"is_global": False}
        operators = any(was.get(name) != after.get(name) for name in ("is_global", "partition_cap"))
        yield ObjectChange(kind, after["id"], after["slug"], before, after, None if operators else self.owner), path

    def _refuse(self, path: Path, reason: str) -> None:
        self.errors.append(self.file.error(path, reason))

    def _marked(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record with the mark of the file, unless it keeps its own."""
        now, mark = record.get("managed_by"), self.options.managed_by
        return {**record, "managed_by": mark} if mark and (not now or self.options.renames_mark) else record

    def _project(self, given: Record, before: Record | None) -> Record:
        """Return the record of the project."""
        values = with_defaults(given, PROJECT)
        for name in REFERENCES:
            if values[name] is not None:
                record = self._policy_named(values[name])
                if record is None:
                    self._refuse(("project", name), f"There is no policy {values[name]}.")
                values[name] = record and record["id"]
        mark = (before or {}).get("managed_by", "")
        if mark and self.options.managed_by not in ("", mark) and not self.options.renames_mark:
            self.stays.append(f"The project is managed from {mark}. --managed-by names another file.")
        return self._marked({"id": self.owner, **UNSAID, **(before or {}), **values})

    def _policy(self, slug: str, row: Policy | None, path: Path) -> dict[str, Any]:
        """Return the record of a policy of the file."""
        values, owner = with_defaults(self.file.policies[slug], POLICY), self.file.project
        if row is None and owner and not self.visible.all_projects and (rule := slug_error(slug, owner["slug"])):
            self._refuse((*path, "slug"), f"{rule}, because this key is limited to projects.")
        before = row.as_record() if row else {"id": new_id("pol"), "project": self.owner, "is_global": False, **UNSAID}
        metering, limits = values.pop("metering"), [Limit.from_json(one).to_json() for one in values["limits"]]
        kept = {name: value for name, value in before.items() if name != "metering"}
        return self._marked({**kept, **values, "limits": limits, **({"metering": metering} if metering else {})})

    def _policy_named(self, slug: str) -> Record | None:
        """Return the record of a policy as it will be, or None if there will be none."""
        row = self.present.policies.get(slug) or self.present.named.get(slug)
        return self.known.get(slug) or (row.as_record() if row else None)

    def _choose(self, records: Mapping[str, dict[str, Any]]) -> None:
        """Make the global policy of the file that of the records."""
        chosen, former = self.file.chosen_global, self.present.chosen
        if not chosen:
            if former and not self.file.project:
                self.stays.append(f"The global policy is {former.slug}, of which the file says nothing.")
        elif chosen[0] is not None and chosen[0] not in records:
            rule = f"Must be a policy that all projects share. There is none with the slug {chosen[0]}."
            self._refuse(("global",), rule)
        else:
            for slug, record in records.items():
                record["is_global"] = slug == chosen[0]

    def _is_pruned(self, slug: str, mark: str) -> bool:
        """Return whether a policy is deleted that is not in the file, or say that it stays."""
        if self.options.prune and mark:
            return True
        why = ", because no file has managed it" if self.options.prune else " without --prune"
        self.stays.append(f"Policy {slug} is not in the file, and stays{why}.")
        return False

    def _overrides(self) -> Iterator[Placed]:
        rows = {
            key: row
            for key, row in self.present.overrides.items()
            if self.owner == (row.token.project_id if row.token else row.project_id)
            and not (row.token and self.file.token_overrides is None)
        }
        lists = {"overrides": self.file.overrides, "token_overrides": self.file.token_overrides or {}}
        for name, overrides in lists.items():
            for index, (key, given) in enumerate(overrides.items()):
                values, end = with_defaults(given, OVERRIDE), given.get("ends_at")
                if end and datetime.fromisoformat(end) <= self.now:
                    self.stays.append(f"The override of {key} has ended at {end}. Remove it.")
                    continue
                row = rows.get(key)
                before, path = row.as_record() if row else None, (name, index)
                policy = self._limit_of(values["limit"], path)
                if policy is None or (row is None and not self._is_own(given.get("token"), path)):
                    continue
                after = self._override(values, before, given.get("token"))
                if after != before:
                    yield ObjectChange("override", after["id"], key, before, after, policy["project"]), path
        for key in sorted(rows.keys() - self.file.all_overrides.keys()):
            slug, _, name = str(rows[key].limit).partition("/")
            policy = self.policies.get(slug)
            if policy and all(limit["name"] != name for limit in policy["limits"]):
                continue  # it is deleted with its limit
            if not self.options.prune_overrides:
                self.stays.append(f"The override of {key} is not in the file, and stays without --prune-overrides.")
                continue
            before = rows[key].as_record()
            yield ObjectChange("override", before["id"], key, before, None, rows[key].limit.policy.project_id), ()

    def _limit_of(self, named: str, path: Path) -> Record | None:
        """Return the record of the policy of a limit, or None after an error."""
        slug, _, name = named.partition("/")
        policy = self._policy_named(slug)
        if policy is None:
            self._refuse((*path, "limit"), f"Must be a limit of a policy. There is no policy {slug}.")
        elif all(limit["name"] != name for limit in policy["limits"]):
            self._refuse((*path, "limit"), f"Must be a limit of the policy {slug}, which has no {name}.")
        else:
            return policy
        return None

    def _is_own(self, token: str | None, path: Path) -> bool:
        """Return whether a token belongs to the project. None stands for the project itself."""
        if token is None or self.present.tokens.get(token) == self.owner:
            return True
        self._refuse((*path, "token"), f"There is no token {token} in the project.")
        return False

    def _override(self, values: dict[str, Any], before: Record | None, token: str | None) -> Record:
        """Return the record of an override."""
        partition, end = text_of(values.pop("partition")), values["ends_at"]
        holder = {"token": token, "project": None if token else self.owner}
        ends = {"ends_at": isoformat(end and datetime.fromisoformat(end))}
        record = {"id": new_id("ovr"), **holder, **(before or {}), **values, **ends}
        return self._marked({**record, **({"partition": partition} if partition else {})})
