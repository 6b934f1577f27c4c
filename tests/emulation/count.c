/* A plugin of QEMU's user-mode emulation that counts the instructions a program executes.
 *
 * The program marks a moment by a system call that fails, close(MARK); the count at that moment is written to the file
 * of the argument `out`, a line each. All threads count together.
 *
 * The declarations are those of the plugin interface, version 1, in QEMU 7 and later: Debian packages no header.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MARK 0x6b0c0deu

typedef uint64_t plugin_id;
struct block; /* translated instructions that run one after the other */

enum operation { ADD_U64 };
typedef void translated(plugin_id id, struct block *block);
typedef void called(plugin_id id, unsigned cpu, int64_t number, uint64_t first, uint64_t a2, uint64_t a3, uint64_t a4,
                    uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, translated *function);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, called *function);
extern size_t qemu_plugin_tb_n_insns(const struct block *block);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct block *block, enum operation what, void *where,
                                                     uint64_t amount);

int qemu_plugin_version = 1;
static uint64_t n_executed;
static FILE *out;

static void count_block(plugin_id id, struct block *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &n_executed, qemu_plugin_tb_n_insns(block));
}

static void note_mark(plugin_id id, unsigned cpu, int64_t number, uint64_t first, uint64_t a2, uint64_t a3, uint64_t a4,
                      uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)cpu, (void)number, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if ((uint32_t)first == MARK) {
        fprintf(out, "%" PRIu64 "\n", n_executed);
        fflush(out);
    }
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (strncmp(argv[i], "out=", 4) == 0)
            out = fopen(argv[i] + 4, "w");
    if (out == NULL) {
        fputs("count: out=FILE is missing, or cannot be written\n", stderr);
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, count_block);
    qemu_plugin_register_vcpu_syscall_cb(id, note_mark);
    return 0;
}
