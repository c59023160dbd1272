# For gdb, which forgets where a kernel has moved when the kernel's symbols are read anew, as the kernel's own lx-symbols
# does: it is told again. Before it, vmm_vmlinux is set, the file that has them.
import gdb
import os
import re


def vmm_keep_slide():
    ours = os.path.realpath(vmm_vmlinux)
    files = [os.path.realpath(file.filename) for file in gdb.objfiles() if file.filename]
    if ours not in files:
        return
    try:
        said = gdb.execute('monitor linux', to_string=True)
        slide = re.search('moved by (0x[0-9a-f]+)', said)
        if slide is None or int(slide[1], 16) == 0:
            return
        quoted = '"%s" -o %s' % (vmm_vmlinux.replace('\\', '\\\\').replace('"', '\\"'), slide[1])
        if '.data..percpu' not in said:
            gdb.execute('symbol-file ' + quoted, to_string=True)
            return
        # Only what is added has sections of its own, and only without a word everything goes, the kernel's with it.
        gdb.execute('symbol-file', to_string=True)
        gdb.execute('add-symbol-file %s -s .data..percpu 0' % quoted, to_string=True)
        if [file for file in files if file != ours]:
            print('vmm: the symbols of modules went with those of the kernel: monitor symbols has the lines that load them')
    except gdb.error as error:
        print('vmm: it is not known where the kernel is, and its symbols are where it was linked: %s' % error)


gdb.execute('define hookpost-symbol-file\npython vmm_keep_slide()\nend')
