/* trunkctl: trunkd's command line. The table of commands, the overview, and who runs what. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"

static const tk__cmd commands[] = {
    {"classify", "FILE|DIR|-...", "ask your heads what is on images",
     "Sends images (JPEG or PNG) to the server and prints what each head answers. A folder stands "
     "for all\n"
     "images in it, \"-\" for a stream of JPEG frames on standard input, one after another "
     "(MJPEG).\n"
     "Many images go through one call, as fast as the server answers.\n\n"
     "  trunkctl classify photo.jpg\n"
     "  trunkctl classify photo.jpg --head type,colour --top 3\n"
     "  trunkctl classify photos/ --head type --tally        how many of each class\n"
     "  trunkctl classify photos/ --json | grep '\"error\"'    one line of JSON per image\n"
     "  ffmpeg -i car-park.mp4 -r 1 -c:v mjpeg -f image2pipe - | trunkctl classify - --head type "
     "--tally\n"
     "  trunkctl classify photos/ --repeat --for 60          ask for a minute, then count requests "
     "and failures",
     tk__cmd_classify},
    {"evaluate", "DIR|CSV", "measure a head on labelled images",
     "Classifies labelled images and compares the answers with the labels: accuracy on photographs "
     "that the\n"
     "server has never seen. The images stay what they are; nothing is stored.\n\n"
     "  trunkctl evaluate --head type photos/test             a folder per class\n"
     "  trunkctl evaluate --head type test.csv                columns file,label\n"
     "  trunkctl evaluate --head colour labels.csv --label-column colour --where part=test "
     "--classes\n"
     "  trunkctl evaluate --head type photos/test --quiet     prints 83.76",
     tk__cmd_evaluate},
    {"dataset upload", "DIR|CSV", "upload labelled images",
     "Uploads a folder that has a folder per class (DIR/CLASS/IMAGE.jpg), or the files that a CSV "
     "names, next to\n"
     "it, with their labels. The server looks at each image as it comes; what it cannot read it "
     "names and leaves\n"
     "out, or it refuses the whole upload if asked so. The answer comes when everything is on its "
     "disk.\n\n"
     "  trunkctl dataset upload photos/train\n"
     "  trunkctl dataset upload labels.csv --name spring --refuse-bad\n"
     "  trunkctl dataset upload catalogue.csv --file-column path --label-column colour --where "
     "part=bob",
     tk__cmd_dataset_upload},
    {"dataset list", "", "your data sets", "  trunkctl dataset list", tk__cmd_dataset_list},
    {"dataset get", "ID", "one data set with its labels", "  trunkctl dataset get 3",
     tk__cmd_dataset_get},
    {"dataset delete", "ID", "delete a data set, for good",
     "What is deleted is gone from the server's disk, too.\n\n  trunkctl dataset delete 3",
     tk__cmd_dataset_delete},
    {"finetune", "--head NAME --data ID", "teach the trunk a head, without harm to the other heads",
     "Trains a head on a data set, on the trunk that all tenants share, and commits the result if "
     "no other head\n"
     "falls by more than its tolerance. The first head of a fresh trunk trains the trunk "
     "itself.\n\n"
     "  trunkctl finetune --head colour --data 2 --watch\n"
     "  trunkctl finetune --head colour --data 2 --recipe kd --set kappa=2 --set epochs=12\n"
     "  trunkctl finetune --head colour --data 2 --fallback reject --retention nothing\n"
     "  trunkctl finetune --head colour --data 3 --refresh      your own head goes on learning\n\n"
     "Without --refresh a head of this name is replaced. With it, the gate holds it to its floor, "
     "too, on the\n"
     "held-out images that it had (shown as NAME@earlier); what the gate refuses leaves it as it "
     "is.\n\n"
     "Recipes: kd+ewc (default), kd, ewc, projection, finetune, finetune-low-lr, probe, adapter, "
     "and "
     "scratch for a fresh trunk.\nEvery setting, with its default and bounds: docs/learning.md.",
     tk__cmd_finetune},
    {"job list", "", "your jobs, newest first", "  trunkctl job list --limit 5", tk__cmd_job_list},
    {"job get", "ID", "one job: state, settings, every head",
     "  trunkctl job get 2\n  trunkctl job get 2 --quiet    prints its state", tk__cmd_job_get},
    {"job watch", "ID", "follow a job until it ends",
     "Shows the job's progress, live on a terminal and as plain lines elsewhere. Ctrl-C stops "
     "watching, not the\n"
     "job. The exit code is 0 when the job has committed.\n\n  trunkctl job watch 2",
     tk__cmd_job_watch},
    {"job cancel", "ID", "stop a job", "  trunkctl job cancel 2", tk__cmd_job_cancel},
    {"job curves", "ID", "every evaluation of every head during a job",
     "Each head is measured at a cadence while a job trains (--set validate_every). FLOOR is what "
     "the "
     "gate asks\n"
     "for; losses are means over the epoch that ends there. A resumed job has each evaluation "
     "once.\n\n"
     "  trunkctl job curves 2\n"
     "  trunkctl job curves 2 --csv > curves.csv     "
     "step,epoch,stage,head,images,measured_as,value,"
     "floor,losses\n"
     "  trunkctl job curves 2 --svg curves.svg       a chart for the browser",
     tk__cmd_job_curves},
    {"gate explain", "JOB", "why the gate decided as it did, and whether it would again",
     "Each job that trained to its end leaves a decision: the files before and after (sha256), and "
     "for "
     "every\n"
     "existing head the rule and the counts. LOST are held-out images that were right before and "
     "are "
     "wrong now, WON\n"
     "the other way round; CHANGE and +- (its standard error) are points on the same images. FLOOR "
     "is "
     "the best\n"
     "committed accuracy less what the head MAY FALL, but never above BEFORE; a head is admitted "
     "when "
     "AFTER less\n"
     "SIGMA standard errors reaches it (finetune --set gate_sigma=1). Floors hold on the held-out "
     "images.\n\n"
     "A decision is written in the transaction that ends the job, and nothing can change it. The "
     "server judges it\n"
     "again from rule and counts each time it is asked; the exit code is 1 when it does not come "
     "out "
     "the same.\n\n"
     "  trunkctl gate explain 2\n"
     "  trunkctl gate explain 2 --json\n\n"
     "From images, where the owner kept them: trunkd-trainer eval measures any exported version on "
     "any pack.",
     tk__cmd_gate_explain},
    {"heads", "", "your heads at the current version",
     "An admin sees every tenant's.\n\n  trunkctl heads\n  trunkctl heads --json", tk__cmd_heads},
    {"head delete", "NAME", "delete a head, for good", "  trunkctl head delete colour",
     tk__cmd_head_delete},
    {"validation", "[HEAD...]", "how good heads are on their held-out images",
     "The server keeps some of each uploaded data set apart and measures the head on it at every "
     "version.\n\n"
     "  trunkctl validation\n"
     "  trunkctl validation colour --classes        by class\n"
     "  trunkctl validation --history               after every version, and what was forgotten\n"
     "  trunkctl validation --history --csv         the same as lines: version, head, accuracy, "
     "...\n"
     "  trunkctl validation --json                  with the confusion matrix\n\n"
     "--history prints R, the accuracy of each head after each version, and of it ACC, BWT, "
     "forgetting and\n"
     "Min-ACC with their definitions. A head that was trained again begins anew. Numbers by "
     "agreement "
     "count in\n"
     "none of them.",
     tk__cmd_validation},
    {"tenant create", "NAME", "admin: make a tenant and its first token",
     "The token is shown once; the server keeps only its hash.\n\n"
     "  trunkctl tenant create alice\n"
     "  trunkctl tenant create alice --quiet > alice.token",
     tk__cmd_tenant_create},
    {"tenant list", "", "admin: all tenants, with their weights and limits",
     "  trunkctl tenant list                            - is what everybody has\n"
     "  trunkctl tenant list --json",
     tk__cmd_tenant_list},
    {"tenant limits", "NAME", "admin: a tenant's share of the queue and its limits",
     "Without options: what is set. 0 is what everybody has: weight 1, and what the server's flags "
     "say. A tenant of\n"
     "weight 2 has twice the turns of one of weight 1 while both wait; nobody's turns are lost "
     "while it has nothing\n"
     "to do. What is not named stays. It holds at once, and after a restart.\n\n"
     "  trunkctl tenant limits alice --weight 2 --rate 50\n"
     "  trunkctl tenant limits alice --images 512 --bytes 67108864\n"
     "  trunkctl tenant limits alice --rate 0                what everybody has",
     tk__cmd_tenant_limits},
    {"tenant delete", "NAME", "admin: a tenant leaves, for good",
     "Its tokens, data sets, jobs, heads and held-out images are gone from the server's disk, and "
     "from the versions that a rollback can reach. What the shared trunk has learnt from its "
     "images "
     "stays.\n\n  trunkctl tenant delete alice",
     tk__cmd_tenant_delete},
    {"token issue", "[TENANT]", "admin: one more token for a tenant",
     "The token is shown once. An admin token needs --admin instead of a tenant's name.\n\n"
     "  trunkctl token issue alice\n  trunkctl token issue --admin",
     tk__cmd_token_issue},
    {"token revoke", "TOKEN-ID", "admin: end a token", "  trunkctl token revoke t3f0c1",
     tk__cmd_token_revoke},
    {"versions", "", "admin: all versions, newest first",
     "PRECISIONS are those in which no head loses more than its tolerance against fp32; a star "
     "marks "
     "the one in\n"
     "which the version is served (trunkd --precision). LABELS are names that requests may ask "
     "for, "
     "with their\n"
     "share of the requests that name no version.\n\n"
     "  trunkctl versions\n"
     "  trunkctl versions --precision               the numbers behind it: ALIKE is the share of "
     "the held-out\n"
     "                                              images that get the same answer as in fp32",
     tk__cmd_versions},
    {"rollback", "VERSION", "admin: serve an older version again",
     "Makes a new version that equals the older one; nothing is lost.\n\n  trunkctl rollback 2",
     tk__cmd_rollback},
    {"version label", "NAME VERSION", "admin: name a version, or give it a share of the requests",
     "A label stays at its version, whatever becomes current, and its version stays in memory. "
     "Requests ask for it by\n"
     "name (classify --model-version NAME). With --percent it answers that share of the requests "
     "that name no version;\n"
     "one label at a time may have a share. \"latest\" is always the current version.\n\n"
     "  trunkctl version label stable 11\n"
     "  trunkctl version label canary 12 --percent 5\n"
     "  trunkctl version label canary 12            no share any more",
     tk__cmd_version_label},
    {"version unlabel", "NAME", "admin: take a label away",
     "Requests that ask for it are refused from then on.\n\n  trunkctl version unlabel canary",
     tk__cmd_version_unlabel},
    {"version export", "[VERSION]", "admin: a version as a safetensors file",
     "Without a number: the current one.\n\n  trunkctl version export 3 --output trunk.safetensors",
     tk__cmd_version_export},
    {"trunk import", "FILE", "admin: begin with trained weights",
     "A safetensors file with torchvision's names of a ResNet-18/34/50 or ResNet-20/32/56, of "
     "which "
     "architecture\n"
     "and input size are guessed unless given; or an exported version, whose heads stay behind.\n\n"
     "  trunkctl trunk import resnet18.safetensors\n"
     "  trunkctl trunk import resnet18.safetensors --arch resnet18 --px 64",
     tk__cmd_trunk_import},
    {"status", "", "admin: how the server is doing", "  trunkctl status", tk__cmd_status},
    {"top", "", "admin: requests, latency, queue and jobs, live",
     "Shows what happened since the view before: requests and images a second, the size of a pass, "
     "and for each\n"
     "stage of classification the time that half and 99 in 100 stay below. decode and queue count "
     "images, trunk and\n"
     "head passes, total requests. Redrawn on a terminal, one view below the other elsewhere.\n\n"
     "  trunkctl top\n"
     "  trunkctl top --once --interval 10           one view of ten seconds\n"
     "  trunkctl top --json                         one line of JSON per view",
     tk__cmd_top},
    {"bench", "--images DIR", "load on a server: how much it answers, and how fast",
     "Closed loop: N calls are in flight at any time, and the next starts when one ends; this "
     "finds "
     "how much a\n"
     "server can answer at most. Open loop: calls come at random times, R a second, as from many "
     "clients that know\n"
     "nothing of each other; this finds how long they wait at that load. There latency counts from "
     "when a call was\n"
     "meant to start, so no stall hides what its clients would have waited. Refused are calls that "
     "the server turns\n"
     "away for its limits; their latency is apart. Images are read into memory first; quantiles "
     "are at most 1 % too\n"
     "long. The load is real: not on a server that others need. Ctrl-C ends early, with the "
     "report.\n\n"
     "  trunkctl bench --images photos/ --concurrency 32           the most it answers\n"
     "  trunkctl bench --images photos/ --rate 100 --seconds 60    how long a call takes at "
     "100/s\n"
     "  trunkctl bench --images photos/ --rate 900 --deadline-ms 200\n"
     "                                                             too much: what is answered in "
     "time?\n"
     "  trunkctl bench --images photos/ --tokens tenants.txt --admin-token-file admin.token\n"
     "                                                             a mix of tenants, and the "
     "server's stages\n"
     "  trunkctl bench --call health --concurrency 64              calls without a model\n"
     "  trunkctl bench --images photos/ --csv runs.csv --json      for scripts\n\n"
     "The exit code is 1 when no call was answered OK; --quiet prints the goodput, calls a second.",
     tk__cmd_bench},
    {"health", "", "is the server ready? (needs no token)",
     "Asks grpc.health.v1. The exit code is 0 when it is serving.\n\n"
     "  trunkctl health --wait 30                   wait up to 30 seconds for it",
     tk__cmd_health},
};
static const size_t n_commands = sizeof(commands) / sizeof(commands[0]);

static int overview(FILE *out)
{
    fprintf(out,
            "trunkctl %s: many tenants, one shared trunk\n\nUsage: trunkctl COMMAND [ARGUMENTS] "
            "[OPTIONS]\n\n",
            TRUNKD_VERSION);
    for (size_t i = 0; i < n_commands; i++) {
        char left[64];
        snprintf(left, sizeof(left), "%s %s", commands[i].name, commands[i].args);
        fprintf(out, "  %-31s %s\n", left, commands[i].summary);
    }
    fputs("\nThe server and your token:\n"
          "  --server, --token-file                      on the command line\n"
          "  TRUNKD_SERVER, TRUNKD_TOKEN                 in the environment (also "
          "TRUNKD_TOKEN_FILE)\n"
          "  ~/.config/trunkd/config                     mode 0600; lines: server = HOST:PORT, "
          "token = TOKEN\n\n"
          "By TLS: --tls with the system's certificates, or --tls-ca FILE; your own certificate: "
          "--tls-client-cert\n"
          "and --tls-client-key. Each is a variable, too (TRUNKD_TLS=yes|no, TRUNKD_TLS_CA, ...), "
          "and a line of the\n"
          "config file (tls = yes|no, tls-ca = FILE, ...).\n\n"
          "trunkctl help COMMAND shows its options and examples. Exit codes: 0 done, 1 failed, 2 "
          "wrong usage.\n",
          out);
    return TK__DONE;
}

/* Words of `name` that argv begins with: all of them, or 0. */
static int words_matched(const char *name, int argc, char **argv)
{
    int words = 0;
    for (const char *p = name; *p; words++) {
        const size_t n = strcspn(p, " ");
        if (words >= argc || strlen(argv[words]) != n || strncmp(argv[words], p, n) != 0) return 0;
        p += n + (p[n] == ' ');
    }
    return words;
}

static const tk__cmd *find_command(int argc, char **argv, int *words)
{
    for (size_t i = 0; i < n_commands; i++)
        if ((*words = words_matched(commands[i].name, argc, argv))) return &commands[i];
    return NULL;
}

/* A word that only begins commands ("dataset") or none at all. */
static int unknown_command(const char *word)
{
    const size_t n = strlen(word);
    size_t found = 0;
    for (size_t i = 0; i < n_commands; i++) {
        if (strncmp(commands[i].name, word, n) != 0 || commands[i].name[n] != ' ') continue;
        if (!found++) fprintf(stderr, "trunkctl: which of these?\n");
        fprintf(stderr, "  trunkctl %s %s\n", commands[i].name, commands[i].args);
    }
    if (!found) return tk__usage(NULL, "there is no command \"%s\"", word);
    return TK__USAGE;
}

int main(int argc, char **argv)
{
    tk__ctl ctl = {.timeout_ms = 60000};
    if (argc < 2) {
        overview(stderr);
        return TK__USAGE;
    }
    const bool help = strcmp(argv[1], "help") == 0;
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || (help && argc == 2))
        return overview(stdout);
    if (strcmp(argv[1], "--version") == 0) {
        printf("trunkctl %s\n", TRUNKD_VERSION);
        return TK__DONE;
    }
    const int first = help ? 2 : 1;
    int words = 0;
    const tk__cmd *cmd = find_command(argc - first, argv + first, &words);
    if (!cmd) return unknown_command(argv[first]);
    char ask[] = "--help", *help_argv[] = {argv[0], ask, NULL};
    const int at = first + words - 1; /* the command's last word stands in for its argv[0] */
    const int code =
        help ? cmd->run(&ctl, cmd, 2, help_argv) : cmd->run(&ctl, cmd, argc - at, argv + at);
    tk_client_close(ctl.client);
    free(ctl.address);
    if (fflush(stdout) != 0) return tk__fail("standard output could not be written");
    return code;
}
