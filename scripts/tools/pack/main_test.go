package main

import "testing"

func TestDebianVersion(t *testing.T) {
	for git, want := range map[string]string{
		"v1.2.3":                  "1.2.3",
		"1.2.3":                   "1.2.3",
		"v1.2.3-dirty":            "1.2.3.dirty",
		"v1.2.3-4-gabcdef0":       "1.2.3+4.gabcdef0",
		"v1.2.3-4-gabcdef0-dirty": "1.2.3+4.gabcdef0.dirty",
		"abcdef0":                 "0.0.0+gabcdef0",
		"abcdef0-dirty":           "0.0.0+gabcdef0.dirty",
	} {
		if got := debianVersion(git); got != want {
			t.Errorf("debianVersion(%q) = %q, want %q", git, got, want)
		}
	}
}
