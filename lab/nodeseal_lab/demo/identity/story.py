"""The story of identities: its steps, in their order."""

from __future__ import annotations

from nodeseal_lab.demo.identity.new_root import replace_root
from nodeseal_lab.demo.identity.revoked_identity import revoke_and_restore
from nodeseal_lab.demo.identity.stage import Stage
from nodeseal_lab.demo.identity.two_domains import part_and_join
from nodeseal_lab.demo.identity.who_has_what import show_identities


class IdentityStory(Stage):
    """One run of it."""

    def run(self) -> None:
        """See Story.run."""
        self.begin()
        show_identities(self)
        of_shipper, of_siem = replace_root(self)
        revoke_and_restore(self, of_shipper, of_siem)
        part_and_join(self)
        self.nothing_left("e")
