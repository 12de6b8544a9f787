package e2e

import "testing"

// TestAnycast runs the scenario "anycast".
func TestAnycast(t *testing.T) {
	runScenario(t, "anycast", "ip", "bird", "birdc", "curl", "tcpdump")
}
