/* tenant create, list, limits and delete, token issue, token revoke: the admin's register of who
 * may ask.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "term.h"
#include "trunkd/v1/admin.pb-c.h"

/* Prints a fresh token the one time that it is known. */
static void print_token(const tk__ctl *ctl, const char *whose, const char *token, const char *id)
{
    if (ctl->quiet) {
        tk__put(stdout, token);
        putchar('\n');
        return;
    }
    fputs(whose, stdout);
    fputs("token     ", stdout);
    tk__put(stdout, token);
    fputs("   (shown this once: keep it)\ntoken id  ", stdout);
    tk__put(stdout, id);
    fputs("   (to revoke it)\n", stdout);
}

int tk__cmd_tenant_create(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    tk__list rest;
    int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 1, 1);
    if (code != TK__GO) return code;
    Trunkd__V1__CreateTenantRequest request;
    trunkd__v1__create_tenant_request__init(&request);
    request.name = rest.items[0];
    Trunkd__V1__CreateTenantResponse *answer =
        tk__call(ctl, "/trunkd.v1.Admin/CreateTenant", &request.base,
                 &trunkd__v1__create_tenant_response__descriptor);
    tk__list_free(&rest);
    if (!answer) return TK__FAILED;
    if (ctl->json) {
        tk__print_json(&answer->base);
    } else {
        char *name = tk__clean(answer->name), *whose = tk__format("tenant    %s\n", name);
        print_token(ctl, whose, answer->token, answer->token_id);
        free(name);
        free(whose);
    }
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

/* A limit's cell; 0 is what everybody has. */
static void put_limit(tk__table *table, double value, const char *everybody)
{
    if (value > 0)
        tk__table_cell(table, "%.15g", value);
    else
        tk__table_cell(table, "%s", everybody);
}

static void print_tenants(const Trunkd__V1__ListTenantsResponse *answer)
{
    static const char *const titles[] = {"TENANT",   "HEADS", "DATA SETS",   "STORED", "WEIGHT",
                                         "IMAGES/S", "QUEUE", "QUEUE BYTES", "SINCE"};
    tk__table table;
    tk__table_init(&table, "lrrrrrrrl");
    for (size_t i = 0; i < sizeof(titles) / sizeof(titles[0]); i++)
        tk__table_cell(&table, "%s", titles[i]);
    for (size_t i = 0; i < answer->n_tenants; i++) {
        const Trunkd__V1__Tenant *t = answer->tenants[i];
        const Trunkd__V1__TenantLimits *l = t->limits;
        char buf[64];
        tk__table_cell(&table, "%s", t->name);
        tk__table_cell(&table, "%llu", (unsigned long long)t->heads);
        tk__table_cell(&table, "%llu", (unsigned long long)t->data_sets);
        tk__table_cell(&table, "%s", tk__bytes(t->bytes, buf, sizeof(buf)));
        put_limit(&table, l ? l->weight : 0, "1");
        put_limit(&table, l ? l->rate : 0, "-");
        put_limit(&table, l ? (double)l->images : 0, "-");
        tk__table_cell(&table, "%s", l && l->bytes ? tk__bytes(l->bytes, buf, sizeof(buf)) : "-");
        tk__table_cell(&table, "%s", tk__when(t->created_ms, buf, sizeof(buf)));
    }
    tk__table_print(&table, stdout, 0);
}

int tk__cmd_tenant_list(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 0, 0);
    if (code != TK__GO) return code;
    Trunkd__V1__Empty request;
    trunkd__v1__empty__init(&request);
    Trunkd__V1__ListTenantsResponse *answer =
        tk__call(ctl, "/trunkd.v1.Admin/ListTenants", &request.base,
                 &trunkd__v1__list_tenants_response__descriptor);
    if (!answer) return TK__FAILED;
    if (ctl->json) {
        tk__print_json(&answer->base);
    } else if (answer->n_tenants == 0) {
        puts("No tenant yet. Make one: trunkctl tenant create NAME");
    } else {
        print_tenants(answer);
    }
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

int tk__cmd_tenant_delete(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 1, 1);
    if (code != TK__GO) return code;
    Trunkd__V1__DeleteTenantRequest request;
    trunkd__v1__delete_tenant_request__init(&request);
    request.name = rest.items[0];
    ProtobufCMessage *answer = tk__call(ctl, "/trunkd.v1.Admin/DeleteTenant", &request.base,
                                        &trunkd__v1__empty__descriptor);
    tk__list_free(&rest);
    if (!answer) return TK__FAILED;
    if (!ctl->quiet) puts("deleted");
    tk_client_free_message(answer);
    return TK__DONE;
}

/* The tenant's limits, within *list, which is to be freed; NULL: there is no such tenant, or the
 * call failed, with the reason printed. */
static const Trunkd__V1__TenantLimits *find_limits(tk__ctl *ctl, const char *name,
                                                   Trunkd__V1__ListTenantsResponse **list)
{
    Trunkd__V1__Empty request;
    trunkd__v1__empty__init(&request);
    *list = tk__call(ctl, "/trunkd.v1.Admin/ListTenants", &request.base,
                     &trunkd__v1__list_tenants_response__descriptor);
    for (size_t i = 0; *list && i < (*list)->n_tenants; i++)
        if (strcmp((*list)->tenants[i]->name, name) == 0) return (*list)->tenants[i]->limits;
    if (*list) tk__fail("NOT_FOUND: tenant: there is none of that name");
    return NULL;
}

static void print_limit(const char *what, double value, const char *unit, const char *none)
{
    if (value > 0)
        printf("%-7s %.15g%s\n", what, value, unit);
    else
        printf("%-7s %s\n", what, none);
}

static void print_limits(const tk__ctl *ctl, const Trunkd__V1__TenantLimits *l)
{
    static const char everybody[] = "as everybody";
    if (ctl->json) {
        tk__print_json(&l->base);
        return;
    }
    print_limit("weight", l->weight, "", "1, as everybody");
    print_limit("rate", l->rate, " images/s", everybody);
    print_limit("images", (double)l->images, " in the queue", everybody);
    print_limit("bytes", (double)l->bytes, " in the queue", everybody);
}

static int set_limits(tk__ctl *ctl, char *name, Trunkd__V1__TenantLimits *limits)
{
    Trunkd__V1__SetTenantLimitsRequest request;
    trunkd__v1__set_tenant_limits_request__init(&request);
    request.tenant = name;
    request.limits = limits;
    Trunkd__V1__TenantLimits *answer =
        tk__call(ctl, "/trunkd.v1.Admin/SetTenantLimits", &request.base,
                 &trunkd__v1__tenant_limits__descriptor);
    if (!answer) return TK__FAILED;
    if (!ctl->quiet) print_limits(ctl, answer);
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

int tk__cmd_tenant_limits(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    double weight = -1, rate = -1; /* not given, as UINT64_MAX below */
    uint64_t images = UINT64_MAX, bytes = UINT64_MAX;
    const tk__opt opts[] = {
        {"weight", 0, TK__REAL, &weight, "W", "its turns beside the others' 1; 0.01 to 100"},
        {"rate", 0, TK__REAL, &rate, "N", "images a second"},
        {"images", 0, TK__NUMBER, &images, "N", "images in the queue"},
        {"bytes", 0, TK__NUMBER, &bytes, "N", "bytes of images in the queue"},
    };
    tk__list rest;
    int code = tk__args_parse(ctl, cmd, opts, 4, argc, argv, &rest, 1, 1);
    if (code != TK__GO) return code;
    Trunkd__V1__ListTenantsResponse *list;
    const Trunkd__V1__TenantLimits *have = find_limits(ctl, rest.items[0], &list);
    code = have ? TK__DONE : TK__FAILED;
    if (have) {
        Trunkd__V1__TenantLimits wish = *have;
        if (weight >= 0) wish.weight = weight;
        if (rate >= 0) wish.rate = rate;
        if (images != UINT64_MAX) wish.images = images;
        if (bytes != UINT64_MAX) wish.bytes = bytes;
        if (weight >= 0 || rate >= 0 || images != UINT64_MAX || bytes != UINT64_MAX)
            code = set_limits(ctl, rest.items[0], &wish);
        else
            print_limits(ctl, have);
    }
    if (list) tk_client_free_message(&list->base);
    tk__list_free(&rest);
    return code;
}

int tk__cmd_token_issue(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    bool admin = false;
    const tk__opt opts[] = {{"admin", 0, TK__FLAG, &admin, NULL, "a token of the admin role"}};
    tk__list rest;
    int code = tk__args_parse(ctl, cmd, opts, 1, argc, argv, &rest, 0, 1);
    if (code != TK__GO) return code;
    if (admin == (rest.n == 1)) {
        code = tk__usage(cmd, "token issue needs a tenant's name, or else --admin");
        tk__list_free(&rest);
        return code;
    }
    char nobody[] = "";
    Trunkd__V1__IssueTokenRequest request;
    trunkd__v1__issue_token_request__init(&request);
    request.tenant = admin ? nobody : rest.items[0];
    Trunkd__V1__IssueTokenResponse *answer =
        tk__call(ctl, "/trunkd.v1.Admin/IssueToken", &request.base,
                 &trunkd__v1__issue_token_response__descriptor);
    tk__list_free(&rest);
    if (!answer) return TK__FAILED;
    if (ctl->json)
        tk__print_json(&answer->base);
    else
        print_token(ctl, "", answer->token, answer->token_id);
    tk_client_free_message(&answer->base);
    return TK__DONE;
}

int tk__cmd_token_revoke(tk__ctl *ctl, const tk__cmd *cmd, int argc, char **argv)
{
    tk__list rest;
    const int code = tk__args_parse(ctl, cmd, NULL, 0, argc, argv, &rest, 1, 1);
    if (code != TK__GO) return code;
    Trunkd__V1__RevokeTokenRequest request;
    trunkd__v1__revoke_token_request__init(&request);
    request.token_id = rest.items[0];
    ProtobufCMessage *answer = tk__call(ctl, "/trunkd.v1.Admin/RevokeToken", &request.base,
                                        &trunkd__v1__empty__descriptor);
    if (answer && !ctl->quiet) puts("revoked");
    tk__list_free(&rest);
    tk_client_free_message(answer);
    return answer ? TK__DONE : TK__FAILED;
}
