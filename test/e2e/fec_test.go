package e2e

import "testing"

// TestFEC runs the scenario "fec".
func TestFEC(t *testing.T) {
	runScenario(t, "fec", "ip")
}
