// Pack turns an installed tree into a Debian package by scripts/deb/nfpm.yaml. It uses nfpm as a
// library: the command of the same name drags in packagers that we do not need.
package main

import (
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // registers the only packager we use
)

func main() {
	version := flag.String("version", "0.0.0", "what git describe said")
	arch := flag.String("arch", "amd64", "Go's name of the architecture")
	tree := flag.String("tree", ".build/root", "where make install put everything")
	out := flag.String("out", "dist", "folder to write to")
	flag.Parse()

	path, err := pack(debianVersion(*version), *arch, *tree, *out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
	fmt.Println(path)
}

func pack(version, arch, tree, out string) (path string, err error) {
	vars := map[string]string{
		"VERSION": version,
		"ARCH":    arch,
		"TREE":    strings.TrimSuffix(tree, "/") + "/",
	}
	config, err := nfpm.ParseFileWithEnvMapping("scripts/deb/nfpm.yaml", func(name string) string { return vars[name] })
	if err != nil {
		return "", err
	}
	info, err := config.Get("deb")
	if err != nil {
		return "", err
	}
	info.MTime = sourceDate()
	if err := stamp(tree, info.MTime); err != nil {
		return "", err
	}
	info = nfpm.WithDefaults(info)
	packager, err := nfpm.Get("deb")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", err
	}
	path = filepath.Join(out, packager.ConventionalFileName(info))
	return path, write(path, func(w io.Writer) error { return packager.Package(info, w) })
}

// stamp gives every file of the tree one date, so that two packages of one commit are equal.
func stamp(tree string, at time.Time) error {
	return filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, at, at)
	})
}

// write leaves a whole file or none.
func write(path string, fill func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".pack-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

var described = regexp.MustCompile(`^v?(\d+\.\d+\.\d+)(?:-(\d+))?(?:-(g[0-9a-f]+))?(-dirty)?$`)

// debianVersion turns v1.2.3-4-gabcdef into 1.2.3+4.gabcdef, which sorts after 1.2.3, and a bare
// commit into 0.0.0+gabcdef.
func debianVersion(git string) string {
	m := described.FindStringSubmatch(git)
	if m == nil {
		return "0.0.0+g" + strings.ReplaceAll(git, "-", ".")
	}
	v := m[1]
	if m[2] != "" {
		v += "+" + m[2] + "." + m[3]
	}
	return v + strings.ReplaceAll(m[4], "-", ".")
}

// sourceDate is the commit's.
func sourceDate() time.Time {
	stamp := os.Getenv("SOURCE_DATE_EPOCH")
	if stamp == "" {
		out, err := exec.Command("git", "-c", "safe.directory=*", "log", "-1", "--format=%ct").Output()
		if err != nil {
			return time.Now().UTC()
		}
		stamp = strings.TrimSpace(string(out))
	}
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return time.Now().UTC()
	}
	return time.Unix(seconds, 0).UTC()
}
