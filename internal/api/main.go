package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/printer"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// listings is where the files are, from the module's root.
const listings = "docs/api"

func main() {
	if err := write("."); err != nil {
		fmt.Fprintln(os.Stderr, "api:", err)
		os.Exit(1)
	}
}

// write replaces the files by what the source says.
func write(root string) error {
	all, err := list(root)
	if err != nil {
		return err
	}
	dir := filepath.Join(root, listings)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range all {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// list returns the files by name.
func list(root string) (map[string][]byte, error) {
	all := map[string][]byte{}
	err := filepath.WalkDir(root, func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, dir)
		if err != nil {
			return err
		}
		if rel = filepath.ToSlash(rel); !public(rel) {
			return filepath.SkipDir
		}
		text, err := exports(dir, rel)
		if text != nil {
			all[fileOf(rel)] = text
		}
		return err
	})
	return all, err
}

// public tells whether a folder may hold packages for everybody.
func public(rel string) bool {
	if rel == "." {
		return true
	}
	base := path.Base(rel)
	return base != "internal" && base != "testdata" && base[0] != '.' && base[0] != '_' &&
		!slices.Contains([]string{"bench", "bin", "cmd", "docs", "out", "tools"}, rel)
}

// fileOf is the name of a package's file.
func fileOf(rel string) string {
	if rel == "." {
		rel = "mainz"
	}
	return strings.ReplaceAll(rel, "/", "_") + ".txt"
}

// exports is the text about one package; nil if there is none.
func exports(dir, rel string) ([]byte, error) {
	ctx := build.Default
	ctx.GOOS, ctx.GOARCH, ctx.CgoEnabled = "linux", "amd64", false
	p, err := ctx.ImportDir(dir, 0)
	if _, none := err.(*build.NoGoError); none || p != nil && p.Name == "main" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	var decls []string
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		if !ast.FileExports(f) {
			continue
		}
		for _, d := range f.Decls {
			text, err := declaration(fset, d)
			if err != nil {
				return nil, err
			}
			if text != "" {
				decls = append(decls, text)
			}
		}
	}
	slices.Sort(decls)
	var b bytes.Buffer
	fmt.Fprintf(&b, "package %s // %s\n\n", p.Name, path.Join("github.com/mainzdb/mainz", rel))
	for _, d := range decls {
		fmt.Fprintln(&b, d)
	}
	return b.Bytes(), nil
}

// declaration is the text of one declaration, without a body; a function's is one line,
// wherever the source breaks it.
func declaration(fset *token.FileSet, d ast.Decl) (string, error) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Recv != nil && !ast.IsExported(receiver(d.Recv.List[0].Type)) {
			return "", nil
		}
		d.Body = nil
	case *ast.GenDecl:
		if d.Tok == token.IMPORT {
			return "", nil
		}
	}
	var b bytes.Buffer
	err := (&printer.Config{Mode: printer.UseSpaces | printer.TabIndent, Tabwidth: 8}).Fprint(&b, fset, d)
	text := b.String()
	if _, is := d.(*ast.FuncDecl); is {
		text = strings.NewReplacer("( ", "(", ", )", ")").Replace(strings.Join(strings.Fields(text), " "))
	}
	return text, err
}

// receiver is the name of a receiver's type.
func receiver(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.StarExpr:
		return receiver(x.X)
	case *ast.IndexExpr:
		return receiver(x.X)
	case *ast.IndexListExpr:
		return receiver(x.X)
	case *ast.Ident:
		return x.Name
	}
	return ""
}
