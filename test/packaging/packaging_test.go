package packaging

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bermedge/berm/test/rig/rigtest"
)

// TestMain runs everything from the top of the repository.
func TestMain(m *testing.M) {
	if err := os.Chdir("../.."); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func require(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		_, err := exec.LookPath(p)
		rigtest.Require(t, err)
	}
}

// mustRun returns what a command printed, and fails the test with it when the command fails.
func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// build makes the installed tree, once.
var build = sync.OnceValues(func() ([]byte, error) {
	// Under sudo make builds as the user, who could not write to a folder of this test.
	return exec.Command("make", "--no-print-directory", "package", "DIST=.build/dist").CombinedOutput()
})

// mustBuild makes a package of the installed tree.
func mustBuild(t *testing.T, version string) string {
	t.Helper()
	if out, err := build(); err != nil {
		t.Fatalf("make package: %v\n%s", err, out)
	}
	return strings.TrimSpace(mustRun(t, ".build/tools/pack", "-version", version, "-out", t.TempDir()))
}

// scratch is a root that dpkg manages and nothing runs in.
type scratch struct{ dir string }

func newScratch(t *testing.T) scratch {
	t.Helper()
	s := scratch{t.TempDir()}
	for _, dir := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "etc", "run", "tmp", "var/log"} {
		if err := os.MkdirAll(filepath.Join(s.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"var/lib/dpkg/status", "var/lib/dpkg/available"} {
		s.mustWrite(t, file, "")
	}
	s.mustWrite(t, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	s.mustWrite(t, "etc/group", "root:x:0:\n")
	return s
}

func (s scratch) mustWrite(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (s scratch) mustRead(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// dpkg runs the package manager on the root; maintainer scripts see it as DPKG_ROOT.
func (s scratch) dpkg(t *testing.T, args ...string) string {
	t.Helper()
	return mustRun(t, "dpkg", append([]string{
		"--root=" + s.dir, "--log=/dev/null", "--force-script-chrootless", "--force-depends", "--force-confold",
	}, args...)...)
}

// files lists everything but dpkg's own books and the user database, which a purge leaves.
func (s scratch) files(t *testing.T) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(s.dir, func(path string, _ fs.DirEntry, err error) error {
		name, _ := filepath.Rel(s.dir, path)
		if err == nil && !strings.HasPrefix(name, "var/lib/dpkg") && !slices.Contains(userFiles, name) {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// userFiles are what systemd-sysusers writes beside the user it makes.
var userFiles = []string{
	"etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/.pwd.lock",
	"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-",
}

// TestPackage installs, upgrades, removes and purges the package in a scratch root. Afterwards
// the root is what it was before.
func TestPackage(t *testing.T) {
	rigtest.Require(t, needRoot())
	require(t, "dpkg", "systemd-sysusers", "systemd-tmpfiles", "make")
	older, newer := mustBuild(t, "1.0.0"), mustBuild(t, "1.1.0")
	root := newScratch(t)
	before := root.files(t)

	root.dpkg(t, "--install", older)
	installed := root.files(t)
	for _, want := range []string{
		"usr/bin/berm", "usr/bin/bermd", "etc/berm/berm.yaml", "run/berm",
		"usr/lib/systemd/system/berm-kernel.service", "usr/lib/systemd/system/bermd.service",
		"usr/share/man/man1/berm.1.gz", "usr/share/man/man8/bermd.8.gz", "usr/share/doc/berm/README.md",
		"usr/share/bash-completion/completions/berm", "usr/share/zsh/vendor-completions/_berm",
	} {
		if !slices.Contains(installed, want) {
			t.Errorf("installing leaves no %s", want)
		}
	}
	if !strings.Contains(root.mustRead(t, "etc/passwd"), "\nberm:") {
		t.Error("installing makes no user berm")
	}

	const edited = "node: {name: mine}\n"
	root.mustWrite(t, "etc/berm/berm.yaml", edited)
	root.dpkg(t, "--install", newer)
	if got := root.mustRead(t, "etc/berm/berm.yaml"); got != edited {
		t.Errorf("upgrading changed the operator's configuration to %q", got)
	}
	root.dpkg(t, "--install", newer) // once more: the scripts are idempotent

	root.dpkg(t, "--remove", "berm")
	for _, name := range root.files(t) {
		if strings.HasPrefix(name, "usr/") && !slices.Contains(before, name) {
			t.Errorf("removing leaves %s", name)
		}
	}
	if got := root.mustRead(t, "etc/berm/berm.yaml"); got != edited {
		t.Errorf("removing took the operator's configuration: %q", got)
	}

	root.dpkg(t, "--purge", "berm")
	for _, name := range root.files(t) {
		if !slices.Contains(before, name) {
			t.Errorf("purging leaves %s", name)
		}
	}
	if out := root.dpkg(t, "--audit"); out != "" {
		t.Errorf("dpkg --audit: %s", out)
	}
}

// TestOwners: nothing in the package belongs to whoever built it, or may be written by others.
func TestOwners(t *testing.T) {
	require(t, "dpkg-deb", "make")
	for line := range strings.Lines(mustRun(t, "dpkg-deb", "--contents", mustBuild(t, "1.0.0"))) {
		f := strings.Fields(line)
		if f[1] != "root/root" || f[0][5] == 'w' || f[0][8] == 'w' {
			t.Errorf("owner or mode: %s", strings.TrimSpace(line))
		}
	}
}

// exposure is how open systemd finds each unit, in tenths, at most: 0 is shut, 100 wide open.
// The kernel unit loads programs and so cannot be shut further.
var exposure = map[string]string{"bermd.service": "20", "berm-kernel.service": "41"}

// TestUnits verifies the units in an installed tree, and holds how far they are shut.
func TestUnits(t *testing.T) {
	require(t, "systemd-analyze", "make")
	mustBuild(t, "1.0.0")
	for unit, most := range exposure {
		path := ".build/root/usr/lib/systemd/system/" + unit
		cmd := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold="+most, path)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s is more open than %s of 100: %v\n%s", unit, most, err, lastLine(out))
		}
		cmd = exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", "--root="+mustAbs(t, ".build/root"), unit)
		if out, err := cmd.CombinedOutput(); err != nil || complains(out, unit) {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

// complains says whether systemd found fault with a unit of ours, rather than missed the units
// of the system around it.
func complains(out []byte, unit string) bool {
	for line := range bytes.Lines(out) {
		if bytes.Contains(line, []byte(unit)) && !bytes.Contains(line, []byte("not found")) {
			return true
		}
	}
	return false
}

// TestManual renders every page and wants no complaint.
func TestManual(t *testing.T) {
	require(t, "man", "make")
	mustRun(t, "make", "--no-print-directory", "man")
	pages, err := filepath.Glob(".build/share/man/man*/*.gz")
	if err != nil || len(pages) < 10 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, page := range pages {
		cmd := exec.Command("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", page)
		cmd.Env = append(os.Environ(), "MANWIDTH=100", "LC_ALL=C.UTF-8", "MANROFFSEQ=")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if out, err := cmd.Output(); err != nil || stderr.Len() > 0 || len(out) < 200 {
			t.Errorf("%s: %v, %d bytes\n%s", page, err, len(out), &stderr)
		}
	}
}

// TestExampleConfiguration: what the package installs in /etc/berm is right.
func TestExampleConfiguration(t *testing.T) {
	require(t, "make")
	mustRun(t, "make", "--no-print-directory", "build")
	mustRun(t, "bin/berm", "--config", "scripts/config/berm.yaml", "config", "check")
}

func lastLine(out []byte) []byte {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	return lines[len(lines)-1]
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return os.ErrPermission
	}
	return nil
}
