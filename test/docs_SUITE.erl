%%% What the documents say is true: their samples run, their links lead somewhere.
%%%
%%% A fenced sample is either a part of a file in examples/, to the letter, which has tests of its own;
%%% or it is run: Erlang as expressions, whose matches are its assertions, Python in `__main__'.
-module(docs_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, init_per_suite/1, end_per_suite/1]).
-export([
    erlang_samples_run/1,
    python_samples_run/1,
    other_samples_stand_in_the_examples/1,
    links_lead_to_files/1,
    commands_exist/1,
    settings_are_all_described/1
]).

all() ->
    [
        erlang_samples_run,
        python_samples_run,
        other_samples_stand_in_the_examples,
        links_lead_to_files,
        commands_exist,
        settings_are_all_described
    ].

init_per_suite(Config) ->
    {ok, Started} = application:ensure_all_started(py_reactor),
    [{started, Started}, {root, root(code:lib_dir(py_reactor))} | Config].

end_per_suite(Config) ->
    [ok = application:stop(Application) || Application <- proplists:get_value(started, Config)],
    ok.

%% The folder of the project, wherever the tests were built.
root(Folder) ->
    case filelib:is_regular(filename:join(Folder, "CONTRIBUTING.md")) of
        true -> Folder;
        false when Folder =/= "/" -> root(filename:dirname(Folder))
    end.

erlang_samples_run(Config) ->
    Samples = [Sample || {"erlang", Sample} <- samples(Config), not is_example(Sample, Config)],
    ?assertNotEqual([], Samples),
    [run_erlang(Sample) || Sample <- Samples].

run_erlang(Sample) ->
    {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Sample)),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    erl_eval:exprs(Expressions, erl_eval:new_bindings()).

python_samples_run(Config) ->
    Samples = [Sample || {"python", Sample} <- samples(Config), not is_example(Sample, Config)],
    ?assertNotEqual([], Samples),
    [?assertEqual(ok, py:exec(Sample)) || Sample <- Samples].

other_samples_stand_in_the_examples(Config) ->
    Strange = [
        {Language, Sample}
     || {Language, Sample} <- samples(Config),
        Language =/= "erlang",
        Language =/= "python",
        not is_example(Sample, Config)
    ],
    ?assertEqual([], Strange).

links_lead_to_files(Config) ->
    Links = [
        {File, Target}
     || {File, Text} <- documents(Config),
        Target <- captures(Text, "\\]\\(([^)#:]+)(?:#[^)]*)?\\)")
    ],
    ?assertNotEqual([], Links),
    Dead = [Link || {File, Target} = Link <- Links, not filelib:is_file(beside(File, Target))],
    ?assertEqual([], Dead).

commands_exist(Config) ->
    Root = proplists:get_value(root, Config),
    Commands = lists:usort([
        Command
     || {_, Text} <- documents(Config),
        Command <- captures(Text, "(?m)(?:^    |`)((?:script|test|native)/[a-z/._]*[a-z])(?![a-z_*])")
    ]),
    ?assertNotEqual([], Commands),
    ?assertEqual([], [C || C <- Commands, not filelib:is_file(filename:join(Root, C))]).

settings_are_all_described(Config) ->
    {ok, Text} = file:read_file(filename:join([proplists:get_value(root, Config), "docs", "settings.md"])),
    {ok, Settings} = py_reactor_settings:check(),
    Described = captures(Text, "(?m)^\\| `([a-z_]+)` \\|"),
    ?assertEqual(
        lists:sort([atom_to_list(Key) || Key <- maps:keys(Settings)]),
        lists:sort(Described)
    ).

%%--------------------------------------------------------------------------------------------------

documents(Config) ->
    Root = proplists:get_value(root, Config),
    Files = filelib:wildcard("*.md", Root) ++ filelib:wildcard("docs/*.md", Root),
    [
        begin
            {ok, Text} = file:read_file(filename:join(Root, File)),
            {filename:join(Root, File), Text}
        end
     || File <- Files
    ].

samples(Config) ->
    [
        {unicode:characters_to_list(Language), Sample}
     || {_, Text} <- documents(Config),
        [Language, Sample] <- matches(Text, "(?ms)^```([a-z]+)\\n(.*?)^```$")
    ].

is_example(Sample, Config) ->
    Root = proplists:get_value(root, Config),
    lists:any(
        fun(File) ->
            {ok, Text} = file:read_file(File),
            binary:match(Text, Sample) =/= nomatch
        end,
        %% Beside the programs there may be a folder of what Python has compiled.
        [
            File
         || File <- filelib:wildcard(filename:join([Root, "examples", "*"])),
            filelib:is_regular(File)
        ]
    ).

captures(Text, Pattern) ->
    [unicode:characters_to_list(Capture) || [Capture] <- matches(Text, Pattern)].

matches(Text, Pattern) ->
    case re:run(Text, Pattern, [global, {capture, all_but_first, binary}, unicode]) of
        {match, Matches} -> Matches;
        nomatch -> []
    end.

beside(File, Target) ->
    filename:join(filename:dirname(File), Target).
